"""What is kept and what is learned, beside everything people use instead.

    python -m benchmarks.forgetting search dense
    python -m benchmarks.forgetting length dense
    python -m benchmarks.forgetting report

An experiment goes on where it was stopped. Results are in `results/`; `report`
draws tables and pictures from them.
"""

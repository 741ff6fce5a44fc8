"""What θ₀ and the pull cost a device, by the way a model is spread.

    python benchmarks/scale.py                   # the tables of docs/scale.md
    XLA_FLAGS=--xla_force_host_platform_device_count=8 KERAS_BACKEND=jax \
        python benchmarks/scale.py --measure     # the formula, checked

The formula counts what stays on a device between steps, and the gradients:

    memory = (b_θ + b_g + b_state + b_anchor) · P_device
    P_device = P (s / k + 1 − s)

with P = pretrained and trained numbers, k = the devices that share one weight
(1 in data parallel, the tensor group, or all), s = the share of P that the
layout splits, b = bytes of one number: 4, 4, 8 (Adam's two averages) and 4 or
2 (`anchor_dtype`). The pull sends nothing to another device, and reads θ₀ once:
b_anchor · P_device bytes of the device's own memory.

`--measure` counts the same in Keras' variables on fake devices, and reads the
compiled update: its collectives, and by how many bytes its memory traffic is
more than that of the same update without a pull.
"""

import argparse
import dataclasses
import functools
import re

WAYS = ("data", "tensor", "full")
SIZES = (1e9, 8e9, 70e9)
DEVICES = (1, 8, 64, 1024)
# A tensor group stays within one host.
GROUP = 8
COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\b"
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Bytes of one device.

    Args:
        parameters: P.
        sharing: k, the devices that share one weight.
        split: s, the share of P that they split.
        anchor_bytes: Of one number of θ₀; 0 for the base alone.
    """

    parameters: float
    sharing: int = 1
    split: float = 1.0
    anchor_bytes: int = 4

    @property
    def on_device(self):
        """P_device, the numbers of the weights that one device holds."""
        return self.parameters * (self.split / self.sharing + 1 - self.split)

    @property
    def anchors(self):
        """What θ₀ takes; also what the pull reads in one step."""
        return self.anchor_bytes * self.on_device

    @property
    def memory(self):
        """Weights, gradients, Adam's two averages and θ₀."""
        return (4 + 4 + 8) * self.on_device + self.anchors

    @property
    def sent(self):
        """What the pull sends to other devices."""
        return 0.0


def sharing(way, devices):
    """Return how many devices share one weight."""
    return {"data": 1, "tensor": min(devices, GROUP), "full": devices}[way]


def gigabytes(value):
    value /= 1e9
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def gradient_traffic(size, way, devices):
    """Return what one device sends in a step without any pull, in bytes.

    Ring algorithms: an all-reduce of b bytes over n devices sends 2b(n − 1)/n,
    an all-gather or a reduce-scatter half of it. Activations, which tensor
    parallelism sends, depend on the batch and are left out.
    """
    shared = sharing(way, devices)
    if way == "full":  # The weights twice, the gradients once.
        return 3 * 4 * size * (shared - 1) / shared
    replicas = devices // shared
    return 2 * 4 * size / shared * (replicas - 1) / replicas


def print_table(cell):
    heads = [f"{n:,} device{'s' if n > 1 else ''}" for n in DEVICES]
    print(f"| P | spread | {' | '.join(heads)} |")
    print("|---|---|" + "--:|" * len(DEVICES))
    for size in SIZES:
        for way in WAYS:
            cells = [cell(size, way, devices) for devices in DEVICES]
            name = f"{size / 1e9:.0f} billion" if way == WAYS[0] else ""
            print(f"| {name} | {way} | {' | '.join(cells)} |")
    print()


def print_tables():
    def memory(anchor_bytes, size, way, devices):
        cost = Cost(size, sharing(way, devices), anchor_bytes=anchor_bytes)
        return f"{gigabytes(cost.memory)} ({gigabytes(cost.anchors)})"

    def sent(size, way, devices):
        cost = Cost(size, sharing(way, devices))
        others = gradient_traffic(size, way, devices)
        return f"{gigabytes(others)} ({cost.sent:.0f})"

    print("Memory of one device in GB (of it θ₀):\n")
    print_table(functools.partial(memory, 4))
    print("The same with `anchor_dtype` of two bytes:\n")
    print_table(functools.partial(memory, 2))
    print("Sent by one device in a step in GB (of it the pull):\n")
    print_table(sent)


# --- measured ---------------------------------------------------------------


def distribution_of(way, width):
    """Return how a chain of equal layers lies on all devices."""
    import keras

    devices = keras.distribution.list_devices()
    count = len(devices)
    if way == "data":
        return keras.distribution.DataParallel(auto_shard_dataset=False)
    shape = (1, count) if way == "tensor" else (count, 1)
    mesh = keras.distribution.DeviceMesh(shape, ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    # The biases stay whole: s is below 1.
    layout[".*kernel"] = (None, "model") if way == "tensor" else ("batch", None)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )


def measure(way, anchor_dtype, width=512, depth=4):
    """Return what the formula says, and what is there.

    Returns:
        A dict: name → (the formula's bytes, the bytes found), and the names
        of the collectives in the compiled update.
    """
    import keras
    import ml_dtypes
    import numpy as np

    from keras_dualopt import DualOpt

    keras.distribution.set_distribution(distribution_of(way, width))

    def chain():
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [
                keras.Input((width,)),
                *(keras.layers.Dense(width) for _ in range(depth)),
            ]
        )
        # As published in bfloat16.
        model.set_weights(
            [
                array.astype(ml_dtypes.bfloat16).astype("float32")
                for array in model.get_weights()
            ]
        )
        return model

    def built(model, rollback):
        optimizer = DualOpt(
            1e-3,
            rollback=rollback,
            rollback_min=rollback,
            anchor_dtype=anchor_dtype,
        )
        optimizer.bind(model, head=()).build(model.trainable_variables)
        return optimizer

    model, unpulled = chain(), chain()
    optimizer = built(model, 0.01)
    read = later_traffic(optimizer, model)
    read_without = later_traffic(built(unpulled, 0.0), unpulled)

    def found(variables):
        shards = (v.value.addressable_shards[0].data for v in variables)
        return sum(shard.nbytes for shard in shards)

    weights = model.trainable_variables
    numbers = sum(int(np.prod(v.shape)) for v in weights)
    kernels = sum(int(np.prod(v.shape)) for v in weights if len(v.shape) == 2)
    count = 1 if way == "data" else len(keras.distribution.list_devices())
    cost = Cost(numbers, count, kernels / numbers, 2 if anchor_dtype else 4)
    # Scalars: the steps, the rate and whether θ₀ was taken.
    state = [v for v in optimizer.variables if len(v.shape)]
    return {
        "memory": (cost.memory, 2 * found(weights) + found(state)),
        "anchors": (cost.anchors, found(optimizer.anchors)),
        "read": (cost.anchors, read - read_without),
    }, sorted(set(COLLECTIVES.findall(first_update(optimizer, model))))


def compiled(optimizer, model, changed):
    """Compile an update; parts of the state, by place, are constants."""
    import jax

    weights = [v.value for v in model.trainable_variables]
    state = [v.value for v in optimizer.variables]

    def update(weights, state, gradients):
        state = [changed.get(n, value) for n, value in enumerate(state)]
        return optimizer.stateless_apply(state, gradients, weights)

    jitted = jax.jit(update, donate_argnums=(0, 1))
    return jitted.lower(weights, state, weights).compile()


def first_update(optimizer, model):
    """Return the program, in which θ₀ may have to be taken yet."""
    return compiled(optimizer, model, {}).as_text()


def later_traffic(optimizer, model):
    """Return the bytes that an update reads and writes once θ₀ is taken."""
    import jax.numpy as jnp

    names = [v.path.rpartition("/")[2] for v in optimizer.variables]
    flag = names.index("anchors_taken")
    program = compiled(optimizer, model, {flag: jnp.ones((), "int32")})
    return program.cost_analysis()["bytes accessed"]


def print_measured(width, depth):
    print("\n| | θ₀ | | formula | measured | collectives |")
    print("|---|---|---|--:|--:|---|")
    for way in WAYS:
        for dtype in (None, "bfloat16"):
            found, collectives = measure(way, dtype, width, depth)
            for name, (formula, measured) in found.items():
                print(
                    f"| {way} | {dtype or 'float32'} | {name} | {formula:,.0f} "
                    f"| {measured:,.0f} | {', '.join(collectives) or 'none'} |"
                )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args(arguments)
    if options.measure:
        print_measured(options.width, options.layers)
    else:
        print_tables()


if __name__ == "__main__":
    main()

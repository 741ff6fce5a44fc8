"""A damaged file is refused, or it is read exactly as it was written.

The law is about DualOpt's state: θ₀, averages, counters. The weights of the
model are Keras' part of the file; HDF5 has no checksums, and a byte of theirs
that is turned is read without a word. Where Keras refuses them, it may have
read the optimizer before, all of it. The optimizer that reads has been trained:
to a fresh one, a file that has lost its optimizer's group altogether is a file
of pretrained weights.
"""

import io
import math

import h5py
import keras
import networks
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_properties import thorough

from keras_dualopt import restore_optimizer

WIDTH = 3
GROUP = "optimizer/vars"


def trained(seed, widths=(WIDTH, WIDTH, 2)):
    model = keras.Sequential(
        [keras.Input((WIDTH,)), *map(keras.layers.Dense, widths)]
    )
    networks.compile(model, networks.dual_opt())
    random = np.random.default_rng(seed)
    for _ in range(seed):
        x, y = random.normal(size=(2, 8, WIDTH)).astype("float32")
        model.train_on_batch(x, y[:, : widths[-1]])
    return model


def state(model):
    return networks.arrays(model.optimizer.variables)


def same(found, wanted):
    return all(
        np.array_equal(one, other)
        for one, other in zip(found, wanted, strict=True)
    )


class Files:
    """The bytes of two files, and a model of another state to read into."""

    def __init__(self, folder):
        self.folder = folder
        model, other = trained(seed=2), trained(seed=4)
        self.written = state(model)
        self.bytes = {}
        for ending in (".weights.h5", ".keras"):
            path = folder / f"x{ending}"
            save = model.save if ending == ".keras" else model.save_weights
            save(path)
            self.bytes[ending] = path.read_bytes()
        other.save_weights(folder / "other.weights.h5")
        self.other = (folder / "other.weights.h5").read_bytes()
        self.reader = trained(seed=3)
        self.before = state(self.reader)
        self._store = {}
        self.reader.optimizer.save_own_variables(self._store)
        with h5py.File(io.BytesIO(self.bytes[".weights.h5"])) as file:
            self.places = {
                key: (entry.id.get_offset(), entry.nbytes)
                for key, entry in file[GROUP].items()
            }

    def path(self, data, ending=".weights.h5"):
        path = self.folder / f"damaged{ending}"
        # HDF5 cannot close some damaged files, and takes what is written into
        # one that it holds open for what it has read of it. It knows files by
        # inode, so every file is a new one.
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        return path

    def read(self, data, ending=".weights.h5", way=keras.Model.load_weights):
        """Read into the model, which has another state at first."""
        self.reader.optimizer.load_own_variables(self._store)
        assert same(state(self.reader), self.before)
        way(self.reader, self.path(data, ending))

    def edited(self, edit):
        """Return the bytes after a change that leaves HDF5 intact."""
        buffer = io.BytesIO(self.bytes[".weights.h5"])
        with (
            h5py.File(buffer, "r+") as file,
            h5py.File(io.BytesIO(self.other)) as other,
        ):
            edit(file[GROUP], other[GROUP])
        return buffer.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("files"))


# Places as shares of the file, whose length differs between versions of HDF5.
places = st.floats(0.0, 1.0, exclude_max=True)
lengths = st.integers(1, 200)


def cut(data, place):
    return data[:place]


def turned(data, place, bits):
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def overwritten(data, place, noise):
    return (
        data[:place] + noise[: len(data) - place] + data[place + len(noise) :]
    )


def left_out(data, place, length):
    return data[:place] + data[place + length :]


def swapped(data, place, share, length):
    other = math.floor(share * len(data))
    first, second = sorted((place, other))
    length = min(length, second - first, len(data) - second)
    return (
        data[:first]
        + data[second : second + length]
        + data[first + length : second]
        + data[first : first + length]
        + data[second + length :]
    )


damages = st.one_of(
    st.tuples(st.just(cut)),
    st.tuples(st.just(turned), st.integers(1, 255)),
    st.tuples(st.just(overwritten), st.binary(min_size=1, max_size=200)),
    st.tuples(st.just(left_out), lengths),
    st.tuples(st.just(swapped), places, lengths),
)


def damaged(data, place, damage):
    change, *rest = damage
    result = change(data, math.floor(place * len(data)), *rest)
    assume(result != data)
    return result


@pytest.mark.parametrize("way", [keras.Model.load_weights, restore_optimizer])
@pytest.mark.parametrize("ending", [".weights.h5", ".keras"])
@thorough
@given(places, damages)
def test_damage_is_refused_or_has_no_effect(ending, way, files, place, damage):
    data = damaged(files.bytes[ending], place, damage)
    try:
        files.read(data, ending, way)
    except Exception:  # Of HDF5, of the archive, of Keras or ours.
        found = state(files.reader)
        assert same(found, files.before) or same(found, files.written)
    else:
        assert same(state(files.reader), files.written)


@settings(thorough, max_examples=25)
@given(places, damages)
def test_no_model_is_made_of_a_damaged_state(files, place, damage):
    data = damaged(files.bytes[".keras"], place, damage)
    try:
        model = keras.saving.load_model(files.path(data, ".keras"))
    except Exception:
        return
    assert same(state(model), files.written)


@thorough
@given(st.data(), st.integers(1, 255))
def test_a_byte_of_the_state_is_refused_with_its_name(files, data, bits):
    key = data.draw(st.sampled_from(sorted(files.places)))
    offset, length = files.places[key]
    place = offset + data.draw(st.integers(0, length - 1))
    words = "description" if key == "dualopt" else f"checksum of {key!r}"
    with pytest.raises(ValueError, match=f"(?s)damaged.*{words}"):
        files.read(turned(files.bytes[".weights.h5"], place, bits))
    assert same(state(files.reader), files.before)


def replace(group, key, value):
    del group[key]
    group[key] = value


def swap(one, other):
    def edit(group, _):
        first, second = group[one][()], group[other][()]
        replace(group, one, second)
        replace(group, other, first)

    return edit


def change(key, function):
    def edit(group, _):
        replace(group, key, function(group[key][()]))

    return edit


def from_other(*keys):
    def edit(group, other):
        for key in keys or set(group) - {"dualopt"}:
            replace(group, key, other[key][()])

    return edit


def without(key):
    def edit(group, _):
        del group[key]

    return edit


def nan_first(array):
    array.flat[0] = np.nan
    return array


# what was done to the file: (how, words of the error)
EDITS = {
    "anchors swapped": (swap("anchors.0", "anchors.2"), "checksum of 'anchors"),
    "anchor and average swapped": (
        swap("anchors.0", "momentums.0"),
        "checksum",
    ),
    "counters swapped": (swap("iterations", "anchors_taken"), "checksum"),
    "another run's anchor": (
        from_other("anchors.0"),
        "checksum of 'anchors.0'",
    ),
    "another run's arrays": (from_other(), "checksum"),
    "another run's description": (from_other("dualopt"), "checksum"),
    "NaN in an anchor": (change("anchors.0", nan_first), "checksum"),
    "bytes in another order": (
        change("anchors.0", lambda array: array.view(">f4")),
        "checksum of 'anchors.0'",
    ),
    "numbers of another kind": (
        change("anchors.0", lambda array: array.view("int32")),
        "checksum of 'anchors.0'",
    ),
    "another shape": (
        change("anchors.0", np.transpose),
        "checksum of 'anchors.0'",
    ),
    "a vector for a number": (
        change("iterations", lambda array: array.reshape(1)),
        "checksum of 'iterations'",
    ),
    "no anchor": (without("anchors.0"), "'anchors.0'.*without it"),
    "no counter": (without("iterations"), "'iterations'.*without it"),
    "no flag": (without("anchors_taken"), "'anchors_taken'.*without it"),
    "no description": (without("dualopt"), "description.*without one"),
    "description cut": (change("dualopt", lambda a: a[:-7]), "description"),
    "description empty": (change("dualopt", lambda a: a[:0]), "description"),
    "description of zeros": (
        change("dualopt", lambda a: np.zeros(4, "uint8")),
        "description",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_is_refused_in_clear_words(name, files):
    edit, words = EDITS[name]
    data = files.edited(edit)
    with pytest.raises(
        ValueError, match=f"(?s)damaged.*{words}.*Use an earlier"
    ):
        files.read(data)
    assert same(state(files.reader), files.before)


def test_what_is_in_the_file_besides_is_not_read(files):
    def add(group, _):
        group["anchors.99"] = np.ones((WIDTH, WIDTH), "float32")
        group["0"] = np.ones(3, "float32")

    files.read(files.edited(add))
    assert same(state(files.reader), files.written)


@pytest.mark.parametrize("widths", [(4, WIDTH, 2), (WIDTH, 2), (2, WIDTH, 3)])
def test_another_models_file_changes_no_state(widths, files, tmp_path):
    path = tmp_path / "x.weights.h5"
    trained(1, widths).save_weights(path)
    with pytest.raises(ValueError, match="could not be loaded"):
        files.read(path.read_bytes())
    assert same(state(files.reader), files.before)

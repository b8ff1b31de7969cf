"""What the tests of the `rwkv` package's surface and of states share: a model of every version that the package reads."""

from helpers import model, rwkv

VERSIONS = ["4", "5.0", "5.1", "5.2", "6", "7"]
SHAPE = dict(L=3, C=64, N=16, F=192, V=128)


def of_version(version):
    """Four heads of 16. Its file is float32: the package normalises the embedding in the file's precision."""
    ranks = {"6": dict(ranks=(5, 7)), "7": dict(ranks=(5, 6, 7, 9), layer0_v=True)}
    return model(version=version, **SHAPE, **ranks.get(version, {}))


def begun(version):
    """An engine of that version and a state of it that has read four tokens."""
    e = rwkv.Engine(of_version(version).path(), "cpu fp32", threads=1)
    state = e.new_state()
    e.forward([1, 2, 3, 4], state)
    return e, state

"""Names of what a caller in Python gives to a run."""

import pytest

from deeplab_jax.errors import ConfigError
from deeplab_jax.training.extend.given import Given


class Mine:
    """Stands for a data set; nothing is read."""


def test_names_of_what_was_given_are_compared():
    def other(*args):
        pass

    def mine(*args):
        return "one"

    given = Given(Mine(), None, mine)
    assert given.names.keys() == {"train_data", "loss"}
    assert given.names["train_data"] == "Mine"
    assert given.check("runs/a", given.names) == []
    saved = given.names | {"loss": "mine 0123"}
    assert given.check("runs/a", saved) == ["loss mine has changed since the run was saved"]
    with pytest.raises(ConfigError, match="trained with loss=mine, and now with loss=other - call"):
        Given(Mine(), None, other).check("runs/a", given.names)
    told = "started from Python with train_data=Mine, loss=mine - .*: deeplab_jax.train"
    with pytest.raises(ConfigError, match=rf"{told}\(config, workdir, train_data=..., loss=...\)"):
        Given().check("runs/a", given.names)
    stops = Given(callbacks=(mine, other))
    assert stops.names == {"callbacks": "mine,other"}
    told = "callbacks: mine,other when the run was saved, none now"
    assert Given().check("runs/a", stops.names) == [told]
    with pytest.raises(ConfigError, match="with train_data=Mine, and now with no train_data of"):
        Given(None, None, mine).check("runs/a", given.names)
    assert len(given.limits()) == 2
    assert "known by its ids" in given.limits()[0]
    Mine.fingerprint = lambda self: "1"
    assert Given(Mine()).limits() == []
    with pytest.raises(TypeError, match="`transform` must be a function, got int"):
        Given(transform=3)

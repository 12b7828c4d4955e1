"""The transforms of `config.data.transforms`: named ones and functions of the user's."""

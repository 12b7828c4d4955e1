from deeplab_jax import cli
from deeplab_jax.config.schema import fields


def test_the_pages_are_what_the_script_writes(load_script, repository):
    for name, text in load_script("write_reference", "docs").pages().items():
        page = (repository / "docs" / name).read_text()
        assert page == text, f"{name} is out of date: run `python docs/write_reference.py`."


def test_every_verb_and_field_is_there(repository):
    commands, table = ((repository / "docs" / name).read_text() for name in ("cli.md", "config.md"))
    for verb in cli.VERBS:
        assert f"\n## deeplab {verb}\n\n```text\nusage: deeplab {verb} " in commands
    for name in fields():
        assert f"\n| `{name}` | " in table

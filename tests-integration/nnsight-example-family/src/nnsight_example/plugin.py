"""What this plugin offers, by name. It imports nothing: the names are looked up when they are used."""

from nnsight.plugin import hookimpl


@hookimpl
def families():
    return {"CharacterModel": "nnsight_example.family:CharacterModel"}

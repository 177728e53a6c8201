"""Files for systemd and containers, made from templates in a package."""

from importlib.metadata import version
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from metarec_shared.toml_text import toml_value


def rendered(package: str, name: str, /, **values: object) -> str:
    """Return a template of a package with values in it; one that is not given is an error.

    Args:
        package: The package, with dots.
        name: The template's path in it, without its ending ``.j2``.
        values: What it names, beside ``version``, that of MetaRec; the filter ``toml`` spells a scalar as TOML does.
    """
    templates = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701  # nosec B701
    templates.filters["toml"] = toml_value
    text = files(package).joinpath(*f"{name}.j2".split("/")).read_text(encoding="utf-8")
    return templates.from_string(text).render(version=version("metarec"), **values)

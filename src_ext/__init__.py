"""The compiled core. A missing module stops the import here: there is no slower substitute."""

from importlib.util import find_spec as _find_spec

if _find_spec(f"{__name__}.radix") is None:
    raise ImportError(
        "warmlane's compiled core is missing or was built for another Python. Reinstall the "
        "package with `pip install --force-reinstall warmlane`, or in a checkout run `make build` "
        "(a C compiler is needed)."
    )

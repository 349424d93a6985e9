"""One tiny config for each method and adapter: NAME -> what it changes of `tests.small.small_config`."""

METHODS = {
    "supervised": {},
    "distill": dict(method=dict(type="distill", teacher="../teacher", temperature=3.0)),
}

# (method, promise) -> what the refusal of a promise that the method cannot keep says.
REFUSED: dict[tuple[str, str], str] = {}

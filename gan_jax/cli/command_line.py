"""Flags to values, with every mistake as one line: `config_flags` by itself answers with tracebacks."""

import importlib.util
import re
import signal
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from gan_jax import configs
from gan_jax.config import schema
from gan_jax.utils.errors import InputError

CONFIGS = Path(configs.__file__).resolve().parent  # of the shipped ones: the clone's folder, or the package's


def parse(argv: list[str]) -> list[str]:
    """Parses the flags, for `absl.app.run`: the arguments left over, or exit status 2 after one line."""
    values = {}
    try:
        if (argument := config_argument(argv)) is not None:
            overrides = _overrides(argv)
            config = schema.with_own_keys(load_config(argument), overrides).lock()
            flags.FLAGS["config"].parser = _Loaded(config)
            values = schema.flatten(config.to_dict()) | overrides
        elif any(re.match(r"--?config\.", text) for text in argv):
            raise InputError("--config is missing; give one, such as --config=configs/dcgan.py")
        _check_override_keys(argv, values)
        return flags.FLAGS(argv)
    except (InputError, flags.Error) as error:
        print(f"error: {_explained(str(error), values)}", file=sys.stderr)
        sys.exit(2)


class _Loaded(flags.ArgumentParser):
    """Gives the flag --config the config that was loaded; the parser of config_flags would load it again."""

    def __init__(self, config: ConfigDict):
        self._config = config

    def parse(self, argument):
        return self._config


def _overrides(argv: list[str]) -> dict[str, str]:
    """The values that the flags --config.KEY=VALUE, or --config.KEY VALUE, give, as text."""
    following = zip(argv[1:], [*argv[2:], ""], strict=True)
    matches = ((re.fullmatch(r"--?config\.([\w.]+)(=(.*))?", flag, re.DOTALL), after) for flag, after in following)
    return {match[1]: match[3] if match[2] else after for match, after in matches if match}


def show(text: str) -> None:
    """Prints a long text: a reader who has seen enough of it, such as `head`, ends the command."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(text)


def config_name(argv: list[str]) -> str:
    """What a run of this config is called: `configs/mixture.py:ring8` is `mixture-ring8`."""
    path, _, variant = (config_argument(argv) or "").partition(":")
    return "-".join(filter(None, (Path(path).stem, re.sub(r"\W+", "-", variant))))


def config_argument(argv: list[str]) -> str | None:
    """The value of the last --config, as absl would read it; None without any."""
    value = None
    for i, argument in enumerate(argv):
        name, equals, text = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            value = text if equals else "".join(argv[i + 1 : i + 2])
    return value


def load_config(argument: str) -> ConfigDict:
    """The config of `configs/NAME.py` or `configs/NAME.py:VARIANT`. Raises InputError that names the line at fault."""
    name, colon, variant = argument.partition(":")
    path = _config_file(name)
    # Parts by import path, and what a config imports, lie beside it or in the folder above, or where one starts from.
    beside = [path.resolve().parents[1], path.resolve().parent] if path == Path(name) else []
    sys.path += [place for place in map(str, (*beside, Path.cwd())) if place not in sys.path]
    try:
        spec = importlib.util.spec_from_file_location("config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(*([variant] if colon else []))
    except (Exception, SystemExit) as error:
        raise InputError(_fault(path, colon + variant, error)) from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config() returned {type(config).__name__}; it must return a ConfigDict")
    return config


def _config_file(name: str) -> Path:
    """The file of that path; of `configs/NAME.py`, where there is none, the shipped one."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = CONFIGS / path.name if path.parent == Path("configs") else None
    if shipped and shipped.is_file():
        return shipped
    folders = [path.parent, CONFIGS] if shipped else [path.parent]
    names = {file.stem for folder in folders for file in folder.glob("*.py")} - {"__init__", "base"}
    listed = ", ".join(str(path.parent / f"{stem}.py") for stem in sorted(names))
    if not path.name or not listed:
        raise InputError(f"there is no config file {name or '(empty)'}; give one such as configs/dcgan.py")
    close = [f"did you mean {path.parent / stem}.py?" for stem in get_close_matches(path.stem, names, n=1)]
    raise InputError(f"there is no config file {name}; {' '.join([*close, f'there are {listed}'])}")


def _fault(path: Path, variant: str, error: BaseException) -> str:
    if isinstance(error, TypeError) and "get_config()" in str(error):
        return f"{path} has no variants; leave out {variant!r}" if variant else f"{path} needs a variant, {path}:NAME"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path.resolve()]
    place = f"{path}, line {frames[-1].lineno}" if frames else str(path)
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return f"{place}: {kind}{str(error).splitlines()[0] if str(error) else 'failed'}"


def _check_override_keys(argv: list[str], values: dict) -> None:
    for match in filter(None, (re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in argv[1:])):
        if match[1] not in (keys := schema.table(values)):
            members = ", ".join(key for key in keys if key.startswith(match[1] + "."))
            group = f"config key {match[1]} is a group; set one of {members}"
            raise InputError(group if members else schema.unknown_key(match[1], values))


def _explained(message: str, values: dict) -> str:
    """One line of what absl says; for a config value of the wrong type, with the values that would be right."""
    match = re.search(r"flag --config\.([\w.]+)=(.*?): ", message)
    if match and (key := schema.table(values).get(match[1])):
        return schema.wrong_value(match[1], match[2], key.rule)
    return " ".join(message.split())

"""YAML documents that people write (recipes, device profiles), turned into pydantic models.

Every error names `file:line`, the path inside the document, what was expected and what was got, and proposes the close
name for a key that was mistyped. All errors of a document are reported at once, in the order of its lines.
"""

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fieldloop.domain.errors import DocumentError

Model = TypeVar("Model", bound=BaseModel)
Path = tuple[str | int, ...]

_LONGEST_VALUE = 60  # characters of a refused value that an error shows
_WORDS = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:bool"})  # left for pydantic to read


def load(model_type: type[Model], text: str, source_name: str) -> Model:
    """Return the document as a value of its model.

    Args:
        model_type: the pydantic model; give it `extra="forbid"` so that a mistyped key is found.
        text: the YAML text, one document.
        source_name: the file's name, for errors.

    Raises:
        DocumentError: if the text is not YAML, repeats a key or does not fit the model.
    """
    root, value = _parse(text, source_name)
    try:
        return model_type.model_validate(value)
    except ValidationError as exc:
        located = sorted((_line(_node_at(root, error["loc"])), _message(model_type, error)) for error in exc.errors())
        raise DocumentError("\n".join(f"{source_name}:{line}: {message}" for line, message in located)) from exc


def line_of(text: str, path: Path) -> int:
    """Return the line of what lies at a path of a document that was loaded before; of the nearest thing around it."""
    root = _loader(text).get_single_node()
    return _line(_node_at(root, path)) if root is not None else 1


def _parse(text: str, source_name: str) -> tuple[yaml.Node, Any]:
    """Return the document's nodes, which know their lines, and its plain value."""
    try:
        loader = _loader(text)
        root = loader.get_single_node()
        if root is None:
            raise DocumentError(f"{source_name}:1: expected a document with keys and values, got an empty one")
        for key in _repeated_keys(root, frozenset()):
            raise DocumentError(f"{source_name}:{_line(key)}: key `{key.value}` is given twice; keep one of them")
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise DocumentError(f"{source_name}:{line}: not YAML: {exc.problem or exc.context}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise DocumentError(f"{source_name}:1: not YAML: {exc}") from exc


def _loader(text: str) -> yaml.SafeLoader:
    """A safe loader without YAML's surprises: times stay text, and `no` or `off` is a word until a model asks."""
    loader = yaml.SafeLoader(text)
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in choices if tag not in _WORDS] for first, choices in resolvers.items()
    }
    return loader


def _repeated_keys(node: yaml.Node, above: frozenset[int]) -> Iterator[yaml.ScalarNode]:
    """Every key that its mapping already has; a node that contains itself is refused."""
    if id(node) in above:
        raise yaml.composer.ComposerError(None, None, "an alias contains itself", node.start_mark)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    yield key
                seen.add(key.value)
    for child in _children(node):
        yield from _repeated_keys(child, above | {id(node)})


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [value for _, value in node.value]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _node_at(root: yaml.Node, path: Path) -> yaml.Node:
    """The deepest node on the path; for a mapping's entry the key, so that the line is the one a person looks at."""
    node = shown = root
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
            if found:
                shown, node = found[0]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            shown = node = node.value[step]
    return shown


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _message(model_type: type[BaseModel], error: ErrorDetails) -> str:
    """One error in a person's words."""
    path, kind = error["loc"], error["type"]
    parent = ".".join(str(step) for step in path[:-1])
    where = f" in `{parent}`" if parent else ""
    if kind == "extra_forbidden":
        return f"unknown key `{path[-1]}`{where}; {_proposal(str(path[-1]), _keys(model_type, path[:-1]))}"
    if kind == "missing":
        return f"missing key `{path[-1]}`{where}"
    at = f"`{'.'.join(str(step) for step in path)}`: " if path else ""
    if kind == "value_error":
        return at + error["msg"].removeprefix("Value error, ")
    if kind == "union_tag_invalid":
        known = [tag.strip(" '") for tag in str(error["ctx"]["expected_tags"]).split(",")]
        return f"{at}unknown kind `{error['ctx']['tag']}`; {_proposal(str(error['ctx']['tag']), known)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{at}expected keys and their values, got {_shown(error['input'])}"
    return f"{at}{error['msg'][0].lower()}{error['msg'][1:]}, got {_shown(error['input'])}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"


def _proposal(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"expected one of {', '.join(f'`{name}`' for name in known)}"


def _keys(model_type: type[BaseModel], path: Path) -> list[str]:
    """The keys that the model knows at a path."""
    kinds: list[Any] = [model_type]
    for step in path:
        kinds = [inner for kind in kinds for inner in _inside(kind, step)]
    return sorted({name for kind in kinds for name in _fields(kind)})


def _inside(kind: Any, step: str | int) -> list[Any]:
    """The types that may stand one step inside a type; a step that only names a member of a union stays."""
    fields = _fields(kind)
    if fields:
        return _members(fields[str(step)]) if step in fields else [kind]
    inner = get_args(kind)
    return [member for argument in inner[-1 if get_origin(kind) is dict else 0 :] for member in _members(argument)]


def _members(kind: Any) -> list[Any]:
    """The members of a union, without annotations."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [member for argument in get_args(kind) for member in _members(argument)]
    return [kind]


def _fields(kind: Any) -> dict[str, Any]:
    """The keys of a model with their types; nothing for other types."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return {}
    return {info.alias or name: info.annotation for name, info in kind.model_fields.items()}

"""A graph of nodes as a GraphDef, the form that TensorBoard draws."""

from collections.abc import Iterable

from tensorboardX.proto import types_pb2
from tensorboardX.proto.attr_value_pb2 import AttrValue  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.graph_pb2 import GraphDef  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.node_def_pb2 import NodeDef  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.versions_pb2 import VersionDef  # pyright: ignore[reportAttributeAccessIssue]

from jaxcb._graph import Node

_TYPES = {
    "float32": "DT_FLOAT",
    "float64": "DT_DOUBLE",
    "float16": "DT_HALF",
    "bool": "DT_BOOL",
}  # the others have the names that JAX gives them
_PRODUCER = 22  # of TensorFlow 1.x, which these graphs look like


def as_graphdef(nodes: Iterable[Node]) -> GraphDef:
    """Returns the graph, with the shapes of results where TensorBoard looks for those of edges."""
    return GraphDef(node=[_node(node) for node in nodes], versions=VersionDef(producer=_PRODUCER))


def _node(node: Node) -> NodeDef:
    attributes = {name: AttrValue(s=text.encode()) for name, text in node.about.items()}
    shapes = [TensorShapeProto(dim=[TensorShapeProto.Dim(size=n) for n in shape]) for shape, _ in node.results]
    attributes["_output_shapes"] = AttrValue(list=AttrValue.ListValue(shape=shapes))
    if node.results:
        dtype = node.results[0][1]
        known = getattr(types_pb2, _TYPES.get(dtype, f"DT_{dtype.upper()}"), None)
        attributes["dtype"] = AttrValue(s=dtype.encode()) if known is None else AttrValue(type=known)
    return NodeDef(name=node.name, op=node.op, input=node.inputs, attr=attributes)

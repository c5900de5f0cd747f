"""A declared tree against the one that exists: looked at, brought there, written down."""

from collections.abc import Callable

from rbdtree import errors
from rbdtree.engine import leave, membership
from rbdtree.engine import policy as policies
from rbdtree.engine.forest import Forest, Member, Tree, document_of
from rbdtree.model.declaration import Declaration, DeclaredNode, Look
from rbdtree.model.document import Kind
from rbdtree.model.name import ImageSpec, NodeName, parse_size
from rbdtree.plan.declare import NOTHING, Existing, Make, Remove, Set, Standing
from rbdtree.ports import Sites


def observe(sites: Sites, forest: Forest, declared: Declaration) -> Existing:
    """What there is of the declared tree. Images are named as the declaration names them, where they are the same."""
    tree = next((t for t in forest.trees if t.name == declared.tree), None)
    if tree is None:
        if forest.problems:
            # It may well be where nobody answers: what exists is never made twice.
            first = forest.problems[0]
            raise type(first)(f"whether tree {declared.tree} exists cannot be told: {first}", first.hint)
        return NOTHING
    forest.tree(declared.tree)
    names = {node.name: node.image for node in declared.nodes}
    root = tree.root
    settings = root.document.tree_policy if root and root.document else None
    nodes = [_standing(sites, tree, member, names.get(member.ref.name, "")) for member in tree.members.values()]
    broken = [Standing(name, Kind.MIRROR, "?", "?", None, leaving=str(error)) for name, error in tree.broken.values()]
    known = {node.name for node in nodes}
    return Existing(settings, (*nodes, *(node for node in broken if node.name not in known)))


def _standing(sites: Sites, tree: Tree, member: Member, declared: str) -> Standing:
    document, ref = member.document, member.ref
    above = tree.members.get(member.parent_id)
    parent = above.ref.name if above else document.parent.name if document and document.parent else ""
    phase = document.phase if document else ""
    joining = phase == membership.JOINING
    image = declared if declared and _same_image(sites, declared, member) else ref.image_spec
    settings = document.policy if document else None
    told = member.told.summary if member.told else None
    portion = document.portion if document else told.portion if told else ()
    return Standing(ref.name, member.kind, image, parent, settings, joining, "" if joining else phase, portion)


def _same_image(sites: Sites, declared: str, member: Member) -> bool:
    spec, ref = ImageSpec.parse(declared), member.ref
    if (spec.pool, spec.namespace, spec.image) != (ref.pool, ref.namespace, ref.image):
        return False
    # Two sites may be one cluster; and one that does not answer is known by its name alone.
    return spec.site == ref.site or (
        member.document is not None and spec.site in sites.names() and sites.cluster(spec.site).fsid == ref.fsid
    )


def carry_out(
    sites: Sites,
    look: Callable[[], Forest],
    declared: Declaration,
    change: Make | Set | Remove,
    expiry_seconds: float,
) -> str:
    """One change; what was done, in a sentence. ``look``: finds the trees as they are now."""
    match change:
        case Make(node):
            return _make(sites, look(), declared.tree, node)
        case Set(name, key, _, to):
            tree = look().tree(declared.tree)
            found, document = document_of(tree.member(name) if name else tree.needed_root())
            policies.change(found, {key: to} if to is not None else {}, [key] if to is None else [], tree=not name)
            where = document.full_name if name else declared.tree
            return f"{where}: {key} is {to} now" if to is not None else f"{where}: {key} is not set any more"
        case Remove(name):
            tree = look().tree(declared.tree)
            return leave.leave(sites, tree, tree.member(name), keep=False, expiry_seconds=expiry_seconds)


def _make(sites: Sites, forest: Forest, tree: str, node: DeclaredNode) -> str:
    spec, look = ImageSpec.parse(node.image), node.look
    given = membership.layout(look.object_size, look.stripe_unit, look.stripe_count)
    if node.kind is Kind.ROOT:
        there = sites.cluster(spec.site).pool(spec.pool, spec.namespace).image_id(spec.image)
        size = parse_size(look.size) if look.size and there is None else None
        wish = membership.Wish(size, given, look.data_pool)
        membership.init(sites, forest, tree, node.name, spec, wish)
        return f"{tree}/{node.name} is the root of {tree}, on {spec}"
    wish = membership.Wish(None, given, look.data_pool, node.history, node.portion)
    name = NodeName(tree, node.name)
    membership.add(sites, forest, name, node.parent, node.kind, spec, wish)
    return f"{name} is a {node.kind} below {node.parent}, on {spec}; 'rbdtree sync {name}' fills it"


def declaration_of(tree: Tree) -> Declaration:
    """The tree as it is. What a node's image looks like is not asked; it matters only when it is made."""
    root = tree.needed_root()
    _, above = document_of(root)
    nodes: list[DeclaredNode] = []

    def walk(member: Member, parent: str) -> None:
        document = member.document
        if document is None:
            why = member.problem or "it does not answer"
            raise errors.Unreachable(
                f"the settings of {tree.name}/{member.ref.name} cannot be read: {why}",
                f"Look at 'rbdtree site check {member.ref.site}'.",
            )
        nodes.append(
            DeclaredNode(
                member.ref.name,
                member.kind,
                member.ref.image_spec,
                parent,
                document.policy,
                document.history,
                Look(),
                document.portion or None,
            )
        )
        for child in tree.children(member.ref.node_id):
            walk(child, member.ref.name)

    walk(root, "")
    return Declaration(tree.name, above.tree_policy, tuple(nodes))

"""Trees of two nodes to measure with: the root at site a, at site b a mirror with a branch."""

import tool
from images import Hand, Shape
from sites import Sites


class Stage:
    """Both sites, what images look like, and a hand at each."""

    def __init__(self, sites: Sites, objects: int) -> None:
        self.sites = sites
        self.a, self.b = Hand(sites.a), Hand(sites.b)
        self.shape = Shape.small(objects)

    def close(self) -> None:
        self.a.close()
        self.b.close()

    def tree(self, name: str, uplink: str) -> str:
        """A tree of two nodes with a branch at b; the branch's image."""
        image = f"{name}-vol"
        self.a.create(image, self.shape.size)
        self.a.write([image], self.shape.half())
        tool.run(self.sites, self.sites.a, "init", name, "--node", "root", "--image", f"a:rbd/{image}")
        spec = ["--parent", "root", "--kind", "mirror", "--image", f"b:rbd/{image}"]
        tool.run(self.sites, self.sites.b, "add", f"{name}/m", *spec)
        tool.run(self.sites, self.sites.b, "sync", "--cut", name)
        told = tool.ask(self.sites, self.sites.b, "branch", f"{name}/m", "--uplink", uplink)
        return str(told["image"]).rpartition("/")[2]

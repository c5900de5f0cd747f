"""What others do to images behind our back."""

from rbdtree.memory.storage import Change, Storage


def protect(storage: Storage, image_id: str, name: str) -> None:
    """``rbd snap protect``"""
    for place in storage.places.values():
        for volume in place.images.values():
            if volume.image_id == image_id:
                next(s for s in volume.snapshots if s.entry.name == name).protected = True


def write_late(storage: Storage, image_id: str, offset: int, data: bytes | None) -> None:
    """A write, inside one object, by a host that opened the image while its newest snapshot was made, and does not know
    of it (``engine.delta``). None: it removes the object."""
    for place in storage.places.values():
        for volume in place.images.values():
            if volume.image_id == image_id:
                unit, newest = volume.layout.object_bytes, volume.snapshots[-1]
                number, low = offset // unit, offset % unit
                alone = newest.objects.get(number) is volume.objects.get(number)
                old = volume.objects.pop(number, bytes(unit))
                if data is not None:
                    volume.objects[number] = old[:low] + data + old[low + len(data) :]
                if alone:
                    newest.objects.pop(number, None)
                    newest.objects.update({n: o for n, o in volume.objects.items() if n == number})
                at, late = next(storage.numbers), newest.at if alone else 0
                volume.changes.append(Change(at, number * unit + low, len(data or old), False, late))


def corrupt(storage: Storage, image_id: str, number: int, offset: int, data: bytes) -> None:
    """Flips stored bytes of an object, in the head and in every snapshot, as a broken disk would."""
    for place in storage.places.values():
        for volume in place.images.values():
            if volume.image_id == image_id:
                for objects in (volume.objects, *(s.objects for s in volume.snapshots)):
                    old = objects[number]
                    objects[number] = old[:offset] + data + old[offset + len(data) :]

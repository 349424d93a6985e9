"""What a program sends, added up over groups of devices. Shared by tests of what is sent."""


def by_kind(rows):
    """The rows of `bigjax.plan.collectives.of_text`, added up over groups: kind, count, bytes."""
    found = {}
    for row in rows:
        total = found.setdefault(row["kind"], {"kind": row["kind"], "count": 0, "bytes": 0})
        total["count"] += row["count"]
        total["bytes"] += row["bytes"]
    return list(found.values())

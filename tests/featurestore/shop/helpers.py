"""What the on-demand views call: part of their contract, wherever it stands."""

FLOOR = 1.0


def ratio(part, whole):
    """Divide, with a floor under the divisor."""
    return part / whole.clip(lower=FLOOR)


def unused(value):
    return value + 1

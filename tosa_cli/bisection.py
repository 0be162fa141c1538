"""The largest whole number for which something holds."""

from collections.abc import Callable


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest whole number from `low` to `high` for which something holds, where it holds up to some number.

    Args:
        low: A number for which it holds, or which stands for none; it is not asked for.
        high: The largest number that is asked for.
        holds: Asked for about log2(high - low) numbers.
    """
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low

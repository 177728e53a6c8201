"""Attributes of users, such as gender or occupation, as hashes: a vocabulary that everybody has and nobody collects.

The model's table of attributes needs a row for each value, the same one at every node. A list of all values would have
to be collected from the nodes, so there is none: column and value are hashed, with one key for all runs, and a model
reads the hash modulo the size of its table. Values that fall into one row are one to the model.

References:
    Weinberger et al. (2009), Feature hashing for large scale multitask learning, section 2.
"""

from metarec_shared.randomness import keyed_hash

NOT_TOLD = 0
"""Stands for an attribute that a user does not tell."""

_KEY = "attribute of a user"


def attribute_hash(column: str, value: str) -> int:
    """Return the hash of a value in a column, in 1..2^63 - 1; ``NOT_TOLD`` where the value is empty.

    White space around column and value does not count, nor does the case of letters.

    Examples:
        >>> attribute_hash("gender", "F") == attribute_hash("Gender", " f") != attribute_hash("gender", "M")
        True
        >>> attribute_hash("gender", "")
        0
    """
    column, value = column.strip().casefold(), value.strip().casefold()
    return max(keyed_hash(_KEY, f"{column}={value}") >> 1, 1) if value else NOT_TOLD

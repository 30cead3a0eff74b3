"""The reference contract: what a good e-commerce event looks like."""

# No `from __future__ import annotations` here: msgspec reads the annotations when the class is
# made, and plain types keep a typing mistake at import, not at the first record.
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

NonEmpty = Annotated[str, Meta(min_length=1)]
Action = Literal["view", "click", "purchase", "add_to_cart"]
Price = Annotated[float, Meta(ge=0, extra={"error_type": "invalid_price"})]


class EcommerceEvent(msgspec.Struct, frozen=True, gc=False):
    """One action of one user on one product.

    Attributes:
        user_id: Who did it. The key: windows are counted by user.
        product_id: On which product.
        action: What was done.
        price: Price in the shop's currency, 0 or more. Whatever is wrong with it except its type
            (absent, null, negative, not finite) is called `invalid_price`.
        timestamp: When it happened, RFC 3339. Without an offset it is read as UTC.
    """

    user_id: NonEmpty
    product_id: NonEmpty
    action: Action
    price: Price
    timestamp: datetime

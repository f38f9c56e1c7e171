"""Every message that is printed in the figures, to the letter (docs/protocol.md).

Fig. 5d–f print ``Encrypt Key:Key``, a stand-in for a key; it is one here.
"""

from __future__ import annotations

from typing import Final

KEY: Final = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

FIGURES: Final[dict[str, str]] = {
    "3a": "REGISTER\nIdentifier:Ia\nAccept:Create Ib,If\n\n",
    "3b": "REGISTER\nIdentifier:Ia\nAccept:Add Ic,Ie\n\n",
    "3c": "REGISTER\nIdentifier:Ia\nAccept:Delete If\n\n",
    "3d": "REGISTER\nIdentifier:Ia\nAccept:Add Ic,Ie\nDelete If\n\n",
    "5a": "QUERY\nIdentifier:Ia\nCallee:Ib\n\n",
    "5b": "NOTIFY\nRequest Accepted.\n\n",
    "5c": "NOTIFY\nPermission Denied.\n\n",
    "5d": f"NOTIFY\nCallee Address:202.224.186.82\nPassword:Password\nEncrypt Key:{KEY}\n\n",
    "5e": f"NOTIFY\nCaller ID:Ia\nPassword:Password\nEncrypt Key:{KEY}\n\n",
    "5f": "REQUEST\nIdentifier:Ia\nPassword:Password\n\n",
    "5g": "NOTIFY\nCallee not Found.\n\n",
    "5h": "NOTIFY\nCallee not Connected.\n\n",
    "17a": "QUERY\nSTATUS\n\n",
    "17b": "NOTIFY\nSTATUS Acceptable.\n\n",
    "17c": "NOTIFY\nSTATUS Busy.\n\n",
    "17d": "NOTIFY\nCallee is Busy.\n\n",
}


def on_the_wire(text: str) -> bytes:
    """A message in the form that is sent: with CR LF."""
    return text.replace("\n", "\r\n").encode("utf-8")

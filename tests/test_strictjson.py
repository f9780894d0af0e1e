"""What softcache writes as JSON can be read again, whatever a training came to."""

from __future__ import annotations

import math

from softcache import strictjson


def test_numbers_that_json_does_not_have_are_null() -> None:
    value = {"a": [1.5, math.nan, {"b": math.inf}], "c": (-math.inf, 2), "d": "é"}
    assert strictjson.loads(strictjson.dumps(value)) == {"a": [1.5, None, {"b": None}], "c": [None, 2], "d": "é"}
    assert strictjson.loads(strictjson.dumps(value, indent=1))["d"] == "é"

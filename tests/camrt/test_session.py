from __future__ import annotations

import pytest

from camrt import CamrtError
from camrt.session import Session
from tests.tiny_models import tiny_explainer


def test_precisions() -> None:
    one = Session(tiny_explainer(), providers="cpu", precision="fp32")
    assert one.precision == Session(tiny_explainer(), providers="cpu").precision == "fp32"
    assert "fp32" in repr(one)
    with pytest.raises(CamrtError, match="found the precision 'half', expected one of fp32, tf32, bf16, fp16"):
        Session(tiny_explainer(), precision="half")
    with pytest.raises(CamrtError, match=r"found the precision 'bf16', expected fp32: .* no other on CPUExecution"):
        Session(tiny_explainer(), providers="cpu", precision="bf16")

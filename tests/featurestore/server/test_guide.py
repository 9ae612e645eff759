"""Every example of docs/guide/serving.md, as it stands there, against a real edge."""

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "serving.md"
ALL = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_request_of_the_guide_gets_the_answer_of_the_guide(store, edge):
    text = GUIDE.read_text(encoding="utf-8")
    examples = re.findall(r"```bash\n(.*?)```.*?```json\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 3
    for command, answer in examples:
        here = command.replace(":9468/", f":{edge.http_port}/")
        ran = subprocess.run(["bash", "-c", here], capture_output=True, text=True, check=True)
        said = re.sub(r'"20\d\d-[^"]*Z"', '"TIME"', ran.stdout)
        assert json.loads(said) == json.loads(answer)
    store.served.flush()
    (served,) = store.served.files("small", *ALL)
    (label,) = store.served.label_files("small", *ALL)
    (prediction,) = store.served.prediction_files("small", *ALL)
    for file in (served, label, prediction):
        assert pq.read_table(file)["request_id"].to_pylist() == ["cart-17"]
    i11 = next(c for c in store.audit("small").checks if c.invariant == "I11")
    assert (i11.ok, i11.mismatches) == (True, {})

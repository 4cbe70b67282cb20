"""The benchmark of the HTTP server, on a server of its own."""

import json

import pytest

pytestmark = pytest.mark.slow

for _package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "onnxruntime"):
    pytest.importorskip(_package, reason='the server needs the extra "serve"')


def test_pictures_are_answered_and_malformed_requests_are_refused(tmp_path, capsys):
    from hypernet_d2.cli.benchmark import main
    from hypernet_d2.cli.benchmark.malformed import KINDS

    path = tmp_path / "serve.json"
    malformed = str(2 * len(KINDS))
    main(["serve", "--requests", "10", "--malformed", malformed, "--json", str(path)])
    result = json.loads(path.read_text())
    assert result["statuses"] == {"200": 10} and result["exit_status"] == 0
    assert {"400", "415", "422"} <= set(result["malformed"])
    assert not [status for status in result["malformed"] if status.startswith("5")]
    assert 0 < result["seconds"]["50"] <= result["seconds"]["95"] <= result["seconds"]["99"]
    assert "10 requests by 4 clients" in capsys.readouterr().out

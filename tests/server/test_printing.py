import json

import pytest

from server.cli_options import OutputFormat, print_result


@pytest.mark.parametrize("output", OutputFormat)
def test_what_others_wrote_moves_no_cursor_and_turns_no_line_around(
    capsys: pytest.CaptureFixture[str], output: OutputFormat
) -> None:
    hostile = "north\x1b[2J\x9b2J\u202e\u2066"
    print_result({"plan": hostile}, hostile, output)
    shown = capsys.readouterr().out
    assert shown.removesuffix("\n").isprintable()
    if output is OutputFormat.JSON:
        assert json.loads(shown) == {"plan": hostile}

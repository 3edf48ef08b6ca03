"""Pages: templates are found beside those that all share, and what is put in is text."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from tskd_yolo.compare.page import page


def test_a_page_takes_its_frame_from_here_and_its_text_as_text(tmp_path):
    (tmp_path / "own.html").write_text('{% extends "base.html" %}{% block main %}<p>{{ name }}</p>{% endblock %}')
    text = page("own.html", folder=tmp_path, name="<script>")
    assert "default-src 'none'" in text and "<p>&lt;script&gt;</p>" in text
    with pytest.raises(UndefinedError):
        page("own.html", folder=tmp_path)


def test_files_are_named_without_their_hashes(tmp_path):
    (tmp_path / "own.html").write_text("{{ one | first_word }}; {{ several | first_word }}")
    text = page("own.html", folder=tmp_path, one="a.pt (sha256 1)", several=["a.pt (sha256 1)", "b.pt (sha256 2)"])
    assert text == "a.pt; a.pt, b.pt"

from deeplab_jax.report.html import Html, tag


def test_markup_is_escaped_unless_it_is_markup():
    inner = tag("b", 'a<"', title='"><i>', hidden=False, id=None, open=True)
    assert inner == '<b title="&quot;&gt;&lt;i&gt;" open>a&lt;&quot;</b>'
    assert tag("p", inner, "<br>", Html("<br>")) == f"<p>{inner}&lt;br&gt;<br></p>"
    assert tag("img", aria_label="x", class_="y") == '<img aria-label="x" class="y">'

"""Names of experiments."""
from storage.log import experiment_name, margin_form, softmax_form


def test_experiment_names_are_the_released_ones():
    assert experiment_name("flickr", "WSDQH", 1, margin_form(1.0), 0.0001, "0001") == (
        "flickr_WSDQH_nbits=8_adaMargin_gamma=1_lambda=0.0001_0001")
    assert experiment_name("nuswide", "WSDQH", 4, margin_form(1.0, 0.7), 1e-5, "x") == (
        "nuswide_WSDQH_nbits=32_fixMargin_margin=0.7_lambda=1e-05_x")
    assert "gamma=0.5_lambda=0.0_" in experiment_name("a", "WDHT", 2, margin_form(0.5), 0, "x")
    assert softmax_form(0.1, 1.0) == "temperature=0.1_pairs=1"

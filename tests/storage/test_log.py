"""Names of experiments."""
from storage.log import experiment_name


def test_experiment_names_are_the_released_ones():
    assert experiment_name("flickr", "WSDQH", 1, False, 0.7, 1.0, 0.0001, "0001") == (
        "flickr_WSDQH_nbits=8_adaMargin_gamma=1_lambda=0.0001_0001")
    assert experiment_name("nuswide", "WSDQH", 4, True, 0.7, 1.0, 1e-5, "x") == (
        "nuswide_WSDQH_nbits=32_fixMargin_margin=0.7_lambda=1e-05_x")
    assert "gamma=0.5_lambda=0.0_" in experiment_name("a", "WDHT", 2, False, 0.7, 0.5, 0, "x")

"""Constructor arguments that make the heavy networks cheap where a test is not about their size."""

SMALL = {
    "hdnet": {"base_channels": 8},
    "rain_net": {"base_channels": 8},
    "dovenet": {"base_channels": 8},
    "s2am": {"base_channels": 8},
    "dih": {"base_channels": 16},
    "idih": {"base_channels": 16},
    "is2am": {"base_channels": 16},
    "dccf_is2am": {"thumbnail_size": 64},
    "pct_net": {"thumbnail_size": 64},
    "pct_net_vit": {"thumbnail_size": 64},
    "gknet": {"base_channels": 8},
    "bargain_net": {"base_channels": 8},
    "iih": {"base_channels": 8},
    "iih_lt_gd": {"base_channels": 8},
    "iih_base": {"base_channels": 8},
    "dht": {"base_channels": 8, "layers": 2},
    "ht": {"base_channels": 8, "layers": 2},
    "dht_plus": {"base_channels": 8, "layers": 2},
    "ht_plus": {"base_channels": 8, "layers": 2},
}

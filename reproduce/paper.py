"""The numbers in the tables of the paper."""

COLUMNS = ("baseline", "l0_inf", "l0", "l1", "ml")
FID = {  # Table 1
    row: dict(zip(COLUMNS, fids, strict=True))
    for row, fids in {
        "dcgan": (37.75, 34.45, 35.53, 35.52, 22.30),
        "cgan": (27.64, 26.43, 26.06, 26.48, 26.41),
        "wgan_gp": (30.06, 28.97, 28.51, 30.52, 28.04),
        "msgan": (24.32, 21.72, 23.80, 23.91, 21.86),
        "sngan": (25.50, 25.11, 24.81, 24.82, 23.63),
        "sagan": (18.39, 18.23, 18.37, 18.48, 18.09),
        "ssgan": (11.40, 11.19, 11.57, 11.11, 10.92),
        "biggan": (8.23, 7.58, 7.50, 7.68, 7.66),
        "diffcr_biggan": (6.66, 6.22, 6.20, 6.31, 5.95),
    }.items()
}
LOW_DATA_FID = {  # Table 2: (architecture, share of CIFAR-10) -> FIDs
    ("biggan", 0.2): {"baseline": 20.25, "l0_inf": 19.78, "l0": 19.96, "ml": 17.72},
    ("biggan", 0.1): {"baseline": 38.33, "l0_inf": 42.52, "l0": 35.72, "ml": 37.77},
    ("diffcr_biggan", 0.2): {"baseline": 11.29, "l0_inf": 10.93, "l0": 10.62, "ml": 10.33},
    ("diffcr_biggan", 0.1): {"baseline": 16.80, "l0_inf": 15.30, "l0": 15.82, "ml": 16.20},
}
PSNR = {  # Table 3: single, average, in dB; for L0,∞ the scan has "2903", read as 29.03
    "baseline": (28.74, 29.88),
    "l0_inf": (29.03, 29.94),
    "l0": (29.22, 30.21),
}

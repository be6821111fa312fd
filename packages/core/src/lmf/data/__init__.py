"""Files, downloads and mixtures: from what a name of data stands for to records."""

"""Prepare data sets: download, check, pack and describe them by manifests."""

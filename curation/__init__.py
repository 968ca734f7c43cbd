"""The four steps from raw video to scored clips and training shards."""

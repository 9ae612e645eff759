"""Generated protocol stubs, each beside its `.proto`. Bottom of everything."""

"""Bridges to other libraries' models; import what you need from `guidestar.bridge.diffusers`."""

"""What tests share: small networks, pipelines and scenes."""

"""The networks, flat: layers text encoders | vae | dit diffusion samplers."""

"""The networks of the built-in model: stock classes of diffusers and transformers, at our sizes."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from app.training.tokenizer import MODEL_LENGTH

LATENT_CHANNELS = 12
TEXT_WIDTH = 160


def new_vae(channels: tuple[int, ...] = (16, 32, 64, 128)) -> AutoencoderKL:
    """An autoencoder of factor 8: (n, 3, 128, 128) in -1 to 1 to (n, 12, 16, 16)."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
        scaling_factor=1.0,
    )


def new_unet(
    channels: tuple[int, int, int] = (64, 128, 216), heads: tuple[int, int, int] = (2, 4, 6)
) -> UNet2DConditionModel:
    """The denoiser: 16x16 latents, attention below 16x16 only, the pooled text joins the time embedding."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=heads,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        use_linear_projection=True,
    )


def new_text_encoder(tokenizer: CLIPTokenizer, layers: int = 3) -> CLIPTextModel:
    """A small text encoder; its token embeddings start with unit variance."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=5,
        max_position_embeddings=MODEL_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=TEXT_WIDTH,
        attn_implementation="eager",
    )
    model = CLIPTextModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("token_embedding.weight"):
            parameter.data.normal_(0, 1)
        elif name.endswith("position_embedding.weight"):
            parameter.data.normal_(0, 0.3)
    return model


def new_noise_scheduler() -> DDIMScheduler:
    """Noise levels that end at a sigma of about 160.

    That is so near pure noise that backgrounds do not leak into it, and yet finite, so that Euler in
    half precision works.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.025,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused with trailing steps, but the stock pipeline warns of anything else
    )

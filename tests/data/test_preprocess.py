import numpy as np
import pytest
from PIL import Image

from graphopt.data.model_io import image_input
from graphopt.data.preprocess import PRESETS, Preprocess
from graphopt.errors import DataError, ModelError, UsageError

RGB = image_input("x", ("n", 3, 4, 4), np.float32)
NHWC = image_input("x", ("n", 4, 4, 3), np.float32)
GRAY = image_input("x", ("n", 1, 4, 4), np.float32)
OPEN = image_input("x", ("n", 3, "h", "w"), np.float32)


def picture(height=4, width=4, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("imagenet", lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        ("inception", lambda x: x / 127.5 - 1),
        ("efficientnet-lite", lambda x: (x - 127) / 128),
        ("unit", lambda x: x / 255),
        ("raw", lambda x: x * 1.0),
        ("unit{mean=0.5,std=0.25}", lambda x: (x / 255 - 0.5) / 0.25),
        ("raw{scale=0.5,order=bgr,mean=[1,2,3]}", lambda x: x[..., ::-1] * 0.5 - [1, 2, 3]),
    ],
)
def test_values_are_the_formula(text, expected):
    image = picture()
    got = Preprocess.parse(text).apply(image, NHWC)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected(image.astype(np.float64)), rtol=1e-5, atol=1e-5)
    chw = Preprocess.parse(text).apply(Image.fromarray(image), RGB)
    np.testing.assert_array_equal(chw, got.transpose(2, 0, 1))
    assert chw.flags.c_contiguous


@pytest.mark.parametrize(
    "text",
    [
        *PRESETS,
        "imagenet{crop=1.0}",
        "unit{mean=0.286,std=0.353}",
        "imagenet{size=[224,192]}",
        "raw{layout=nhwc,size=[8,8],resize=10,crop=0.5,interpolation=lanczos,scale=2.0,mean=[1.0,2.0,3.0],"
        "std=[4.0,5.0,6.0],order=bgr}",
    ],
)
def test_canonical_text_round_trips(text):
    made = Preprocess.parse(text)
    assert made.spec == text == str(made)
    assert Preprocess.parse(made.spec) == made


def test_canonical_text_leaves_out_what_is_the_preset_anyway():
    assert Preprocess.parse("imagenet{ crop = 0.875, mean=[0.485,0.456,0.406] }").spec == "imagenet"
    assert Preprocess.parse("imagenet{size=224,crop=1}").spec == "imagenet{size=[224,224],crop=1.0}"


def test_toml_table_is_the_same_as_text():
    table = {"preset": "raw", "size": [8, 6], "mean": [1, 2, 3], "order": "bgr"}
    assert Preprocess.from_table(table) == Preprocess.parse("raw{size=[8,6],mean=[1,2,3],order=bgr}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "did you mean 'imagenet'"),
        ("imagenet{cropp=1}", "did you mean 'crop'"),
        ("imagenet,unit", "exactly one"),
        ("imagenet{crop=0}", "at most 1"),
        ("imagenet{crop=1.5}", "at most 1"),
        ("imagenet{crop=[0.5]}", "one number"),
        ("imagenet{size=0}", "number of pixels"),
        ("imagenet{size=[1,2,3]}", r"\[height,width\]"),
        ("imagenet{size=true}", "number of pixels"),
        ("imagenet{resize=2.5}", "number of pixels"),
        ("imagenet{interpolation=cubic}", "did you mean 'bicubic'"),
        ("imagenet{layout=hwc}", "did you mean 'nhwc'"),
        ("unit{std=0}", "positive"),
        ("unit{mean=[]}", "a number or a list"),
        ("unit{mean=inf}", "finite"),
        ("unit{mean=dark}", "finite number or a list"),
        ("unit{scale=-1}", "positive"),
        ("unit{", "malformed preprocess"),
    ],
)
def test_bad_text_is_an_error_that_says_what_is_right(text, message):
    with pytest.raises(UsageError, match=message):
        Preprocess.parse(text)


@pytest.mark.parametrize("table", [{}, {"crop": 1.0}, {"preset": 3}])
def test_a_table_needs_a_preset(table):
    with pytest.raises(UsageError, match="lacks 'preset'"):
        Preprocess.from_table(table)


def test_statistics_must_fit_the_channels():
    with pytest.raises(UsageError, match=r"3 values of mean, but .* 1 channel"):
        Preprocess.parse("imagenet").apply(picture(), GRAY)


def test_resize_and_crop_are_torchvisions():
    image = Image.fromarray(picture(300, 401))
    target = image_input("x", ("n", 224, 224, 3), np.float32)
    resized = image.resize((int(256 * 401 / 300), 256), Image.Resampling.BILINEAR)  # 342 wide
    left = round((resized.width - 224) / 2)
    expected = np.asarray(resized.crop((left, 16, left + 224, 240)), dtype=np.float32)
    np.testing.assert_array_equal(Preprocess.parse("raw").apply(image, target), expected)


def test_explicit_resize_is_the_short_side():
    image = Image.fromarray(picture(50, 40))
    target = image_input("x", ("n", 20, 20, 3), np.float32)
    resized = image.resize((30, 37), Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((5, 8, 25, 28)), dtype=np.float32)
    got = Preprocess.parse("raw{resize=30,interpolation=bicubic}").apply(image, target)
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(UsageError, match="smaller than the 20x20"):
        Preprocess.parse("raw{resize=10}").apply(image, target)


def test_non_square_targets_are_covered():
    target = image_input("x", ("n", 10, 30, 3), np.float32)
    for height, width in ((100, 100), (30, 200), (7, 9)):
        assert Preprocess.parse("raw{crop=0.9}").apply(picture(height, width), target).shape == (10, 30, 3)


@pytest.mark.parametrize("crop", ["0.875", "0.5"])
def test_an_image_of_the_right_size_is_left_alone(crop):
    image = picture()
    np.testing.assert_array_equal(Preprocess.parse(f"raw{{crop={crop}}}").apply(image, NHWC), image)


def test_float_images_resize_like_8_bit_ones():
    target = image_input("x", ("n", 16, 16, 3), np.float32)
    image = picture(40, 50)
    got = Preprocess.parse("raw").apply(image.astype(np.float32), target)
    assert np.abs(got - Preprocess.parse("raw").apply(image, target)).max() <= 1.0


def test_channels_are_converted_to_the_models():
    image = picture()
    gray = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)
    np.testing.assert_array_equal(Preprocess.parse("raw").apply(image, GRAY)[0], gray)
    np.testing.assert_allclose(Preprocess.parse("raw").apply(image.astype(np.float32), GRAY)[0], gray, atol=0.6)
    for source in (Image.fromarray(image).convert("L"), gray.astype(np.uint8), gray[..., None]):
        np.testing.assert_array_equal(Preprocess.parse("raw").apply(source, RGB), np.stack([gray] * 3))


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "1", "F", "I;16"])
def test_every_mode_of_pil_is_accepted(mode):
    plain = Image.fromarray(picture())
    image = Image.new("I;16", (4, 4), 257 * 9) if mode == "I;16" else plain.convert(mode)
    got = Preprocess.parse("raw").apply(image, RGB)
    assert got.shape == (3, 4, 4) and got.min() >= 0 and got.max() <= 255
    if mode == "I;16":
        assert (got == 9).all()


def test_exif_orientation_is_respected():
    image = Image.fromarray(picture(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    image.info["exif"] = exif.tobytes()
    got = Preprocess.parse("raw{size=[6,4]}").apply(image, OPEN)
    np.testing.assert_array_equal(got, np.rot90(np.asarray(image), -1).transpose(2, 0, 1))


def test_bad_arrays_are_errors():
    with pytest.raises(DataError, match=r"neither \[H,W\] nor"):
        Preprocess.parse("raw").apply(np.zeros((3, 4, 5), np.uint8), RGB)
    four = image_input("x", ("n", 4, 8, 8), np.float32)
    with pytest.raises(DataError, match="no alpha"):
        Preprocess.parse("raw").apply(np.zeros((8, 8, 3), np.float32), four)


def test_integer_and_half_inputs_are_cast():
    pixels = image_input("x", ("n", 4, 4, 3), np.uint8)
    got = Preprocess.parse("raw").apply(picture(), pixels)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, picture())
    signed = image_input("x", ("n", 4, 4, 3), np.int8)
    np.testing.assert_array_equal(
        Preprocess.parse("raw{mean=128}").apply(picture(), signed), picture().astype(int) - 128
    )
    half = image_input("x", ("n", 4, 4, 3), np.float16)
    assert Preprocess.parse("imagenet").apply(picture(), half).dtype == np.float16
    with pytest.raises(UsageError, match="makes fractions"):
        Preprocess.parse("unit").apply(picture(), pixels)


def test_size_follows_the_input_unless_it_is_open():
    assert Preprocess.parse("raw").target_size(RGB) == (4, 4)
    assert Preprocess.parse("raw").target_size(OPEN) is None
    assert Preprocess.parse("raw{size=9}").target_size(OPEN) == (9, 9)
    assert Preprocess.parse("raw").apply(picture(5, 7), OPEN).shape == (3, 5, 7)
    assert Preprocess.parse("raw{resize=10}").apply(picture(5, 7), OPEN).shape == (3, 10, 14)
    with pytest.raises(UsageError, match="does not fit the model's input of 4x4"):
        Preprocess.parse("raw{size=9}").target_size(RGB)
    half_open = image_input("x", ("n", 3, 8, "w"), np.float32)
    with pytest.raises(ModelError, match="only one of height and width"):
        Preprocess.parse("raw").target_size(half_open)
    with pytest.raises(UsageError, match=r"8x\?"):
        Preprocess.parse("raw{size=9}").target_size(half_open)


def test_layout_option_rereads_the_input():
    ambiguous = image_input("x", ("n", 3, 9, 3), np.float32, layout="nchw")
    assert Preprocess.parse("raw{layout=nhwc}").apply(picture(3, 9), ambiguous).shape == (3, 9, 3)
    with pytest.raises(ModelError, match="has 32 channels"):
        Preprocess.parse("raw{layout=nhwc}").resolve(image_input("x", ("n", 3, 32, 32), np.float32))

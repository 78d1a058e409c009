"""What the built-in model is taught: nouns with their emoji and synonyms, colours, sizes, places.

A line of `NOUNS` is `noun[,synonym...] = emoji short name [: the thing's own colours]`.
"""

from __future__ import annotations

from dataclasses import dataclass

NOUNS = """
monkey = monkey_face : brown
dog,puppy = dog
wolf = wolf : gray
fox = fox_face : orange
cat,kitten,kitty = cat
lion = lion_face
tiger = tiger : orange
horse,pony = horse : brown
unicorn = unicorn_face
zebra = zebra_face
deer,reindeer = deer
cow = cow
pig,piggy,piglet = pig : pink
sheep,lamb = sheep
camel = camel
giraffe = giraffe_face
elephant = elephant
rhino,rhinoceros = rhinoceros
hippo,hippopotamus = hippopotamus
mouse = mouse
rabbit,bunny,hare = rabbit
squirrel,chipmunk = chipmunk
hedgehog = hedgehog
bat = bat
bear = bear : brown
koala = koala : gray
panda = panda_face
chicken,hen = chicken
rooster = rooster
chick = hatched_chick : yellow
bird = bird : blue
penguin = penguin
eagle = eagle
duck = duck
swan = swan : white
owl = owl
flamingo = flamingo : pink
parrot = parrot
frog,toad = frog : green
crocodile,alligator = crocodile : green
turtle,tortoise = turtle : green
snake = snake : green
dragon = dragon_face : green
dinosaur = t-rex : green
whale = whale : blue
dolphin = dolphin
fish = tropical_fish
shark = shark
octopus = octopus
shell,seashell = shell
crab = crab : red
snail = snail
butterfly = butterfly : blue
caterpillar = bug : green
ant = ant
bee,bumblebee = bee
ladybug,ladybird = ladybug : red
spider = spider
cherry blossom,blossom = cherry_blossom : pink
rose = rose : red
sunflower = sunflower : yellow
tulip = tulip
daisy,flower = blossom
plant,potted plant = potted_plant
pine tree,fir,evergreen = evergreen_tree : green
tree = deciduous_tree : green
palm tree,palm = palm_tree
cactus = cactus : green
maple leaf,leaf = maple_leaf
mushroom,toadstool = mushroom : red
grapes = grapes : purple
watermelon = watermelon
orange,tangerine,mandarin = tangerine : orange
lemon = lemon : yellow
banana = banana : yellow
pineapple = pineapple
apple,red apple = apple : red
green apple = green_apple : green
pear = pear : green
peach = peach
cherries,cherry = cherries : red
strawberry = strawberry : red
blueberries,blueberry = blueberries : blue
tomato = tomato : red
avocado = avocado : green
eggplant,aubergine = eggplant : purple
carrot = carrot : orange
corn,maize = corn : yellow
cucumber,pickle = cucumber : green
broccoli = broccoli : green
onion = onion
bread,loaf = bread
croissant = croissant
pretzel = pretzel : brown
pancakes,pancake = pancakes
waffle = waffle
cheese = cheese_wedge : yellow
burger,hamburger,cheeseburger = hamburger
fries,french fries,chips = fries
pizza = pizza
hot dog,hotdog = hotdog
sandwich = sandwich
taco = taco
egg = egg
fried egg = fried_egg
popcorn = popcorn
sushi = sushi
ice cream,gelato = icecream
donut,doughnut = doughnut
cookie,biscuit = cookie
birthday cake = birthday
cake = cake
cupcake,muffin = cupcake
pie = pie
chocolate = chocolate_bar : brown
lollipop = lollipop
honey = honey_pot
milk = glass_of_milk : white
coffee = coffee
teapot = teapot
wine = wine_glass : red
cocktail,martini = cocktail
beer = beer
globe,earth,world = earth_africa
mountain = snow_capped_mountain
volcano = volcano
beach = beach_with_umbrella
island = desert_island
temple = classical_building
house,home = house
castle = european_castle
church = church
fountain = fountain
tent = tent
sunrise = sunrise_over_mountains
sunset = city_sunset
city,skyline = cityscape
ferris wheel = ferris_wheel
train = train2
bus = bus
fire truck,fire engine = fire_engine : red
police car = police_car
taxi,cab = taxi : yellow
car,automobile = car : red
truck,lorry = truck
tractor = tractor
motorcycle,motorbike = racing_motorcycle
scooter = motor_scooter
bicycle,bike = bike
skateboard = skateboard
traffic light = vertical_traffic_light
stop sign = octagonal_sign : red
anchor = anchor
sailboat,boat = boat
ship,cruise ship = passenger_ship
airplane,plane,jet = airplane
helicopter = helicopter
rocket,spaceship = rocket
ufo,flying saucer = flying_saucer
sun = sun_with_face : yellow
moon = crescent_moon : yellow
planet,saturn = ringed_planet
star = star : yellow
cloud = cloud : white
rain = rain_cloud
lightning,thunderbolt = zap : yellow
tornado = tornado
rainbow = rainbow
umbrella = umbrella : purple
snowflake = snowflake : blue
snowman = snowman : white
fire,flame = fire : orange
water drop,droplet = droplet : blue
pumpkin,jack o lantern = jack_o_lantern : orange
christmas tree = christmas_tree : green
balloon = balloon : red
gift,present = gift
trophy = trophy
soccer ball,soccer = soccer
baseball = baseball
basketball = basketball : orange
football = football : brown
tennis ball,tennis = tennis : yellow
volleyball = volleyball
target,bullseye = dart
kite = kite
game controller,gamepad = video_game
dice = game_die
teddy bear,teddy = teddy_bear : brown
palette = art
glasses,eyeglasses = eyeglasses
sunglasses = dark_sunglasses
jeans,trousers,pants = jeans : blue
scarf = scarf
dress = dress
backpack,schoolbag = school_satchel
shoe,sneaker = athletic_shoe
crown = crown
hat,top hat = tophat : black
ring = ring
diamond,gem = gem
bell = bell : yellow
microphone = microphone
headphones = headphones
radio = radio
saxophone = saxophone
guitar = guitar
piano = musical_keyboard
trumpet = trumpet
violin = violin
drum = drum_with_drumsticks
phone,smartphone = iphone
laptop = computer
television,tv = tv
camera = camera
magnifying glass = mag
candle = candle
light bulb,bulb = bulb
book = closed_book : red
envelope,letter = email
package,box,parcel = package : brown
pencil = pencil2
scissors = scissors
lock,padlock = lock
key = key
hammer = hammer
axe = axe
sword,dagger = dagger_knife
bomb = bomb : black
shield = shield
gear,cog = gear
magnet = magnet
door = door
bed = bed
sofa,couch = couch_and_lamp
chair = chair
broom = broom
hourglass = hourglass
watch,wristwatch = watch
alarm clock,clock = alarm_clock : red
heart = heart : red
ghost = ghost : white
alien = alien
robot = robot_face
skull = skull
smiley,happy face = smile : yellow
"""

FAVOURITES = frozenset(
    """
    cat dog fox panda pig frog owl penguin bear fish butterfly apple banana orange strawberry watermelon lemon
    pizza burger donut cupcake mushroom tree sunflower rose cactus house castle mountain sunset rainbow car
    bus rocket balloon sun moon star heart robot ghost snowman smiley pumpkin coffee
    """.split()
)
"""Simple, well-known things, shown more often towards the end so that at least they come out well."""

COLORS = {
    "red": "#e03b3b",
    "orange": "#f28c28",
    "yellow": "#f7cd3c",
    "green": "#3fa95a",
    "teal": "#35b5b0",
    "blue": "#3a7fe0",
    "purple": "#8a5cc8",
    "pink": "#f496be",
    "brown": "#8b5e3c",
    "black": "#1e1e22",
    "gray": "#8c9196",
    "white": "#f5f5f5",
}
COLOR_SYNONYMS = {"gray": ("grey",), "purple": ("violet",), "teal": ("turquoise", "cyan"), "blue": ("azure",)}

SIZES = {"small": 48, "": 80, "big": 112}
"""Side of the subject in pixels: multiples of 16, so that a centred subject is on the 8-pixel grid."""
SIZE_WORDS = {"small": ("small", "small", "tiny", "little"), "": (), "big": ("big", "large", "big", "huge")}
PAIR_SIZE = 64

PLACES = {"center": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
PLACE_PHRASES = {
    "center": ("in the middle", "in the center"),
    "left": ("on the left", "on the left", "on the left side"),
    "right": ("on the right", "on the right", "on the right side"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom",),
}


@dataclass(frozen=True)
class Noun:
    """A thing the model can draw."""

    word: str
    synonyms: tuple[str, ...]
    emoji: str
    colors: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """All names of the thing, the main one first."""
        return (self.word, *self.synonyms)


def read_nouns() -> list[Noun]:
    """Parse `NOUNS`."""
    nouns = []
    for line in NOUNS.strip().splitlines():
        names, _, rest = line.partition(" = ")
        emoji, _, colors = rest.partition(" : ")
        word, *synonyms = names.split(",")
        nouns.append(Noun(word, tuple(synonyms), emoji.strip(), tuple(colors.split())))
    return nouns

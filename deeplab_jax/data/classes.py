"""Class names and colours of the three published data sets.

The values are those of sssegmentation's data-set classes.
"""

import numpy as np


def colormap(count: int) -> np.ndarray:
    """Returns VOC's colours of the first `count` classes, uint8 (count, 3) RGB.

    The bits of a class are dealt to red, green and blue in turn, from the highest bit down, so
    that neighbouring classes look different. Source: VOC development kit, VOClabelcolormap.m.
    """
    classes, channels = np.arange(count)[:, None], np.arange(3)
    colors = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        colors |= ((classes >> (3 * bit + channels) & 1) << (7 - bit)).astype(np.uint8)
    return colors


_NAMES = {
    "voc": "__background__; aeroplane; bicycle; bird; boat; bottle; bus; car; cat; chair; cow; "
    "diningtable; dog; horse; motorbike; person; pottedplant; sheep; sofa; train; tvmonitor",
    "ade20k": "wall; building, edifice; sky; floor, flooring; tree; ceiling; road, route; bed; "
    "windowpane, window; grass; cabinet; sidewalk, pavement; person, individual, someone, "
    "somebody, mortal, soul; earth, ground; door, double door; table; mountain, mount; plant, "
    "flora, plant life; curtain, drape, drapery, mantle, pall; chair; car, auto, automobile, "
    "machine, motorcar; water; painting, picture; sofa, couch, lounge; shelf; house; sea; "
    "mirror; rug, carpet, carpeting; field; armchair; seat; fence, fencing; desk; rock, stone; "
    "wardrobe, closet, press; lamp; bathtub, bathing tub, bath, tub; railing, rail; cushion; "
    "base, pedestal, stand; box; column, pillar; signboard, sign; chest of drawers, chest, "
    "bureau, dresser; counter; sand; sink; skyscraper; fireplace, hearth, open fireplace; "
    "refrigerator, icebox; grandstand, covered stand; path; stairs, steps; runway; case, display "
    "case, showcase, vitrine; pool table, billiard table, snooker table; pillow; screen door, "
    "screen; stairway, staircase; river; bridge, span; bookcase; blind, screen; coffee table, "
    "cocktail table; toilet, can, commode, crapper, pot, potty, stool, throne; flower; book; "
    "hill; bench; countertop; stove, kitchen stove, range, kitchen range, cooking stove; palm, "
    "palm tree; kitchen island; computer, computing machine, computing device, data processor, "
    "electronic computer, information processing system; swivel chair; boat; bar; arcade "
    "machine; hovel, hut, hutch, shack, shanty; bus, autobus, coach, charabanc, double-decker, "
    "jitney, motorbus, motorcoach, omnibus, passenger vehicle; towel; light, light source; "
    "truck, motortruck; tower; chandelier, pendant, pendent; awning, sunshade, sunblind; "
    "streetlight, street lamp; booth, cubicle, stall, kiosk; television receiver, television, "
    "television set, tv, tv set, idiot box, boob tube, telly, goggle box; airplane, aeroplane, "
    "plane; dirt track; apparel, wearing apparel, dress, clothes; pole; land, ground, soil; "
    "bannister, banister, balustrade, balusters, handrail; escalator, moving staircase, moving "
    "stairway; ottoman, pouf, pouffe, puff, hassock; bottle; buffet, counter, sideboard; poster, "
    "posting, placard, notice, bill, card; stage; van; ship; fountain; conveyer belt, conveyor "
    "belt, conveyer, conveyor, transporter; canopy; washer, automatic washer, washing machine; "
    "plaything, toy; swimming pool, swimming bath, natatorium; stool; barrel, cask; basket, "
    "handbasket; waterfall, falls; tent, collapsible shelter; bag; minibike, motorbike; cradle; "
    "oven; ball; food, solid food; step, stair; tank, storage tank; trade name, brand name, "
    "brand, marque; microwave, microwave oven; pot, flowerpot; animal, animate being, beast, "
    "brute, creature, fauna; bicycle, bike, wheel, cycle; lake; dishwasher, dish washer, "
    "dishwashing machine; screen, silver screen, projection screen; blanket, cover; sculpture; "
    "hood, exhaust hood; sconce; vase; traffic light, traffic signal, stoplight; tray; ashcan, "
    "trash can, garbage can, wastebin, ash bin, ash-bin, ashbin, dustbin, trash barrel, trash "
    "bin; fan; pier, wharf, wharfage, dock; crt screen; plate; monitor, monitoring device; "
    "bulletin board, notice board; shower; radiator; glass, drinking glass; clock; flag",
    "cityscapes": "road; sidewalk; building; wall; fence; pole; traffic_light; traffic_sign; "
    "vegetation; terrain; sky; person; rider; car; truck; bus; train; motorcycle; bicycle",
}
_COLORS = {  # of classes 0, 1, ...; hexadecimal RGB
    "ade20k": "787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff "
    "ebff07 96053d 787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff "
    "ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 "
    "6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f "
    "14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 "
    "003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff "
    "adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc "
    "00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff "
    "a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff "
    "46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 "
    "0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff "
    "7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff",
    "cityscapes": "804080 f423e8 464646 66669c be9999 999999 faaa1e dcdc00 6b8e23 98fb98 4682b4 "
    "dc143c ff0000 00008e 000046 003c64 005064 0000e6 770b20",
}

CLASS_NAMES = {name: tuple(text.split("; ")) for name, text in _NAMES.items()}
PALETTES = {"voc": colormap(21)}  # uint8 (C, 3) RGB
for _name, _text in _COLORS.items():
    PALETTES[_name] = np.frombuffer(bytes.fromhex(_text), np.uint8).reshape(-1, 3)

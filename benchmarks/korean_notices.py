"""Korean market notices by a grammar: any number of texts with few words, each of them seen often.

Texts of another seed are other texts of the same sentences.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

CITIES = [
    "서울", "부산", "대구", "인천", "광주", "대전", "울산", "수원",
    "전주", "청주", "춘천", "강릉", "여수", "목포", "제주",
]  # fmt: skip
PLACES = ["중앙시장", "새벽시장", "수산시장", "농산물시장", "전통시장", "도매시장"]
DAYS = ["월요일", "화요일", "수요일", "목요일", "금요일", "토요일", "일요일"]
GOODS = {
    "상자": ["사과", "감귤", "포도", "복숭아", "토마토", "딸기", "자두", "참외", "감자", "고구마", "양파"],
    "포기": ["배추", "양배추", "상추", "무"],
    "마리": ["고등어", "갈치", "오징어", "광어", "명태", "닭"],
    "봉지": ["시금치", "콩나물", "버섯", "마늘", "고추", "당근", "미역"],
}
SKIES = ["맑고 바람이 약하겠으며", "구름이 많겠으며", "안개가 짙게 끼겠으며", "비가 조금 내리겠으며", "눈이 날리겠으며"]
REASONS = [
    "지난주에 내린 많은 비", "오랫동안 이어진 가뭄", "명절을 앞두고 늘어난 수요", "갑자기 추워진 날씨",
    "새로 문을 연 온라인 가게", "크게 오른 기름값", "풍년이 든 남쪽 지방의 수확", "수입이 늘어난 영향",
]  # fmt: skip
TIPS = [
    "색이 고르고 윤기가 나는 것을 고르는 것이 좋습니다", "손으로 들었을 때 무거운 것이 더 신선합니다",
    "껍질에 흠이 없고 단단한 것을 고르시기 바랍니다", "서늘하고 바람이 잘 통하는 곳에 두면 오래갑니다",
    "신문지에 싸서 냉장고에 넣으면 일주일 동안 먹을 수 있습니다", "소금물에 잠깐 담갔다가 씻으면 더 깨끗합니다",
]  # fmt: skip
DISHES = ["국을 끓이거나", "나물로 무치거나", "간장에 조리거나", "기름에 볶거나", "쪄서 먹거나", "샐러드에 넣거나"]
PEOPLE = ["상인들은", "농민들은", "손님들은", "전문가들은", "관계자들은", "주민들은"]
VIEWS = [
    "다음 주에도 이런 흐름이 이어질 것으로 보고 있습니다", "값이 곧 예년 수준으로 돌아올 것이라고 말합니다",
    "주말에 손님이 더 많아질 것으로 기대하고 있습니다", "물건이 모자랄 수 있으니 미리 사 두라고 권합니다",
    "품질이 작년보다 훨씬 좋아졌다고 입을 모읍니다", "당분간 지켜보아야 한다고 조심스럽게 말했습니다",
]  # fmt: skip
ENDS = [
    "자세한 내용은 시장 안내소에 물어보시기 바랍니다.", "내일 아침에 새로운 소식으로 다시 찾아뵙겠습니다.",
    "장을 보러 오실 때는 장바구니를 챙겨 주시기 바랍니다.", "오늘도 즐거운 하루 보내시기 바랍니다.",
]  # fmt: skip


def notices(count: int, seed: int) -> Iterator[str]:
    """Yield so many texts of some 900 bytes each."""
    chance = random.Random(seed)
    for _ in range(count):
        yield _notice(chance)


def _notice(chance: random.Random) -> str:
    some = chance.choice
    begin = (
        f"{chance.randint(1, 12)}월 {chance.randint(1, 28)}일 {some(DAYS)} {some(CITIES)} {some(PLACES)} 소식입니다."
    )
    sky = f"오늘은 {some(SKIES)} 낮 기온은 {chance.randint(-5, 33)}도로 어제와 비슷하겠습니다."
    goods = [(good, unit) for unit, several in GOODS.items() for good in several]
    lines = [line for good, unit in chance.sample(goods, 3) for line in _about(good, unit, chance)]
    return " ".join([begin, sky, *lines, f"{some(PEOPLE)} {some(VIEWS)}.", some(ENDS)])


def _about(good: str, unit: str, chance: random.Random) -> list[str]:
    some = chance.choice
    price = f"한 {unit}에 {chance.randint(2, 40) * 500}원"
    change = f"어제보다 {some(['조금', '크게', '두 배 가까이'])} {some(['올랐습니다', '내렸습니다'])}"
    every = [
        f"{good}{_after(good, '은는')} {price}으로 {change}.",
        f"{some(REASONS)} 때문에 {good} 값이 {some(['흔들리고', '오르고', '내리고', '안정을 찾고'])} 있습니다.",
        f"{some(CITIES)} 근처에서 온 {good}{_after(good, '이가')} {chance.randint(1, 9)}백 {unit} 들어왔습니다.",
        f"{good}{_after(good, '을를')} 살 때는 {some(TIPS)}.",
        f"{good}{_after(good, '은는')} {some(DISHES)} {some(DISHES)} 어떻게 해도 맛있습니다.",
    ]
    return chance.sample(every, chance.randint(2, 3))


def _after(word: str, forms: Sequence[str]) -> str:
    """Return the form of a particle behind a word: the first after a consonant."""
    return forms[0] if (ord(word[-1]) - 0xAC00) % 28 else forms[1]

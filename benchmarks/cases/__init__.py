"""All cases, a family a file."""

from _case import Case

from cases import again, digits, extra, gpu, growth, inside, looking, replaying, resident, start, streamed, sweeping

CASES: dict[str, Case] = {
    case.name: case
    for family in (resident, streamed, extra, digits, start, again, growth, replaying, looking, inside, sweeping, gpu)
    for case in family.CASES
}

"""All cases, a family a file."""

from _case import Case

from cases import again, digits, extra, gpu, growth, looking, replaying, resident, start, streamed, sweeping

CASES: dict[str, Case] = {
    case.name: case
    for family in (resident, streamed, extra, digits, start, again, growth, replaying, looking, sweeping, gpu)
    for case in family.CASES
}

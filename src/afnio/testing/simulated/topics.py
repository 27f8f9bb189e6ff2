"""Topics: wordings of general English that speak for an urgency or for a kind of request."""

from __future__ import annotations

from typing import Final


def _listed(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "high": _listed("""
        urgent, urgently, emergency, immediate, immediately, as soon as possible, asap, critical,
        right away, without delay, at once, hazard, dangerous, leak, flood, flooding, broken, outage,
        unacceptable, severe, crucial, prompt attention, swift, deadline, time sensitive
    """),
    "medium": _listed("""
        soon, at your earliest convenience, request, schedule, scheduling, appointment, arrange, concern,
        concerns, issue, issues, resolve, address, inconsistent, inspection, assistance, next week,
        follow up, adjust, support team
    """),
    "low": _listed("""
        inquire, inquiry, information about, learn more, curious, interested in, general, no rush,
        whenever, whenever convenient, feedback, appreciation, gratitude, impressed, exploring,
        considering, options, at your convenience, commend, testament
    """),
    "routine_maintenance_requests": _listed("""
        routine maintenance, maintenance, regular maintenance, hvac, check up, tune up, servicing, plumbing
    """),
    "customer_feedback_and_complaints": _listed("""
        feedback, complaint, disappointed, dissatisfaction, frustrated, unacceptable, experience,
        disappointment, satisfied
    """),
    "training_and_support_requests": _listed("""
        training, training program, training session, workshop, learn how, guidance, onboarding, tutorials
    """),
    "quality_and_safety_concerns": _listed("""
        safety, quality, standards, hazard, compliance, unsafe, subpar, health, inspection
    """),
    "sustainability_and_environmental_practices": _listed("""
        sustainability, sustainable, environmental, environmentally, eco friendly, green, energy efficient,
        carbon, recycling, waste
    """),
    "cleaning_services_scheduling": _listed("""
        cleaning schedule, schedule, reschedule, scheduling, weekly, bi weekly, time slot, appointment
    """),
    "specialized_cleaning_services": _listed("""
        specialized cleaning, deep cleaning, carpet, carpets, window, windows, upholstery, stain, stains
    """),
    "emergency_repair_services": _listed("""
        emergency, emergency repair, repair, urgent, leak, burst, flooding, outage, broke, broken
    """),
    "facility_management_issues": _listed("""
        facility management, space utilization, security, facility, coordination, building management
    """),
    "general_inquiries": _listed("""
        inquire, inquiry, information about, learn more, curious, would like to know, general, services you offer
    """),
}
"""Phrases for each label, roughly the most telling first."""

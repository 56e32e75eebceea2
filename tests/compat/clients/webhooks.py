"""Other people's verifiers of Standard Webhooks, over what the farm sent: one JSON document per line of the input."""

import json
import sys

import openai
from checks import refused
from replicate.webhook import InvalidSignatureError, Webhooks, WebhookSigningSecret
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

count = 0
for line in sys.stdin:
    received = json.loads(line)
    headers, body, secret = received["headers"], received["body"], received["secret"]
    changed = body.replace("succeeded", "failed", 1)
    assert changed != body
    client = openai.OpenAI(api_key="none", webhook_secret=secret)
    key = WebhookSigningSecret(key=secret)

    Webhook(secret).verify(body, headers)
    client.webhooks.verify_signature(body, headers)
    Webhooks.validate(headers=headers, body=body, secret=key, tolerance=300)

    with refused(WebhookVerificationError):
        Webhook(secret).verify(changed, headers)
    with refused(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(changed, headers)
    with refused(InvalidSignatureError):
        Webhooks.validate(headers=headers, body=changed, secret=key)
    count += 1
print(count)

"""The official Python client against `unified serve`: python client.py http://127.0.0.1:PORT/v1 PICTURE.png"""
import base64, sys
import openai

base, path = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=base, api_key="none", max_retries=0)
png = lambda data: base64.b64decode(data)[:8] == b"\x89PNG\r\n\x1a\n"
url = "data:image/png;base64," + base64.b64encode(open(path, "rb").read()).decode()

models = [m.id for m in client.models.list()]
assert "nano" in models, models

seen = client.chat.completions.create(model="nano", seed=0, messages=[{"role": "user", "content": [
    {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is in the picture?"}]}])
assert seen.choices[0].message.content == "a red circle", seen.choices[0].message.content
assert seen.choices[0].finish_reason == "stop" and seen.usage.total_tokens > 64

drawn = client.chat.completions.create(model="nano", seed=0, messages=[{"role": "user", "content": "draw a blue square"}])
message = drawn.choices[0].message.model_dump()
assert png(message["images"][0]["image_url"]["url"].split(",")[1])
# the answer goes back into the conversation as it came
again = client.chat.completions.create(model="nano", seed=0, messages=[
    {"role": "user", "content": "draw a blue square"}, {"role": "assistant", "content": message["content_parts"]},
    {"role": "user", "content": "what is in the picture?"}])
assert again.choices[0].message.content == "a blue square", again.choices[0].message.content

text, finish, usage = "", None, None
for chunk in client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "hello"}], stream=True,
                                            stream_options={"include_usage": True}):
    usage = chunk.usage or usage
    for choice in chunk.choices:
        text += choice.delta.content or ""
        finish = choice.finish_reason or finish
assert text.startswith("hello") and finish == "stop" and usage.completion_tokens > 3, text
pictures = 0
for chunk in client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "draw a red star"}], stream=True):
    pictures += sum(len((c.delta.model_extra or {}).get("images", [])) for c in chunk.choices)
assert pictures == 1, pictures

several = client.chat.completions.create(model="nano", seed=3, n=3, temperature=0, stop=["!"], max_tokens=8, logprobs=True,
                                         top_logprobs=2, messages=[{"role": "user", "content": "hello"}])
assert [c.message.content for c in several.choices] == ["hello"] * 3, several
assert several.choices[0].logprobs.content[0].token.strip() == "hello" and len(several.choices[0].logprobs.content[0].top_logprobs) == 2
assert client.completions.create(model="nano", prompt="hello", max_tokens=4).choices[0].text is not None

images = client.images.generate(model="nano", prompt="a red circle", n=2, size="64x64")
assert len(images.data) == 2 and all(png(d.b64_json) for d in images.data)
events = [e.type for e in client.images.generate(model="nano", prompt="a red circle", stream=True, partial_images=2)]
assert events == ["image_generation.partial_image"] * 2 + ["image_generation.completed"], events
edited = client.images.edit(model="nano", image=open(path, "rb"), prompt="make it blue")
assert png(edited.data[0].b64_json)

both = client.embeddings.create(model="nano", input=["a red circle", url]).data
assert len(both) == 2 and len(both[0].embedding) == len(both[1].embedding)
assert abs(sum(x * x for x in both[0].embedding) - 1) < 1e-3

def refused(status, words, **kwargs):
    try:
        client.chat.completions.create(**kwargs)
    except openai.APIStatusError as e:
        assert e.status_code == status and words in e.message, (e.status_code, e.message)
    else:
        raise AssertionError(f"no error: {kwargs}")

hello = [{"role": "user", "content": "hello"}]
refused(404, "no model", model="gpt-4o", messages=hello)
refused(400, "temperature", model="nano", messages=hello, temperature=-1)
refused(400, "data: URL", model="nano", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}])
refused(400, "system", model="nano", messages=[{"role": "system", "content": "be brief"}] + hello)
refused(400, "more than", model="nano", messages=[{"role": "user", "content": "hello " * 4000}])
print("ok")

# The command line for CPUs. The wheel must have been built: python -m build --wheel
#
#   docker build -t harmony .
#   docker run --rm -v "$PWD:/data" harmony image composite.jpg mask.png -o harmonized.png
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
COPY constraints.txt dist/*.whl /tmp/install/
RUN pip install --no-cache-dir -c /tmp/install/constraints.txt /tmp/install/*.whl
RUN useradd --create-home harmony
USER harmony
# The default weights come with the package, and nothing else is downloaded.
ENV HF_HUB_OFFLINE=1
WORKDIR /data
VOLUME /data
ENTRYPOINT ["harmony"]
CMD ["--help"]

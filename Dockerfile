# A study in a container: docs/containers.md shows how to build and run it.
FROM python:3.12-slim
COPY . /opt/study
RUN python -m pip install --no-cache-dir /opt/study
# All that a study writes lies in this directory, so the rest of the container may be read-only.
WORKDIR /work
ENV HOME=/work TORCHINDUCTOR_CACHE_DIR=/work/.cache/torchinductor
USER 1000
ENTRYPOINT ["python", "-m"]
CMD ["study.run", "--baseline", "--demo"]

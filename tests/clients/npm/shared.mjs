// What the scripts share: where the relay is, and how a result is told (a line of JSON a model).
export const url = process.env.WAI_URL;
export const key = process.env.WAI_KEY;
export const hello = "Say hello.";
export const maxTokens = 24;

export async function tell(ask) {
  for (const model of process.argv.slice(2)) {
    let said = "";
    let error = "";
    try {
      said = await ask(model);
      if (!said) error = "it said nothing";
    } catch (failure) {
      error = `${failure?.name}: ${failure?.message} ${failure?.cause ?? ""}`;
    }
    console.log(JSON.stringify({ model, said, error }));
  }
}
